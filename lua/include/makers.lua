-- makers: where each kind of limit says how it is made; a script has those that it was composed with.
--
-- DEFINES makers  functions that make a kind, by the name that a declaration gives it
local makers = {}
