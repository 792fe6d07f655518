"""The `lctr` command line: parse, call, print."""
