-- life: how long what has been admitted can still be settled.
--
-- DEFINES SETTLE_US  how long a rate's state outlives its last change at least, so that real costs
--                    which come in late are still charged
local SETTLE_US = 3600 * 1000000
