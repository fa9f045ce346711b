-- What a script may touch is what Redis 7, Redis 8, Valkey and fakeredis all give it: anything else
-- (os, io, bit, struct, cmsgpack, a misspelt name) is an undefined global, and an error.
std = "stanchion"

stds.stanchion = {
  read_globals = {
    "ARGV", "KEYS",
    cjson = { fields = { "decode", "encode", "null" } },
    redis = { fields = { "call", "error_reply", "pcall", "status_reply" } },
    math = { fields = { "abs", "ceil", "floor", "fmod", "huge", "max", "min", "modf", "pow" } },
    string = {
      fields = {
        "byte", "char", "find", "format", "gmatch", "gsub", "len", "lower", "match", "rep",
        "reverse", "sub", "upper",
      },
    },
    table = { fields = { "concat", "insert", "remove", "sort" } },
    "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget",
    "rawset", "select", "setmetatable", "tonumber", "tostring", "type", "unpack", "xpcall",
  },
}

max_line_length = 100
max_cyclomatic_complexity = 30
