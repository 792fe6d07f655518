"""The commands of `lctr`, one a module: parse, call, print. Heavy packages are imported when a command runs."""
