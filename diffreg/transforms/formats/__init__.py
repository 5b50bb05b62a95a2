"""The files of other tools, one module a tool: each reads and writes the values of this room."""
