"""The command line: commands parse, call and print; nothing below them does."""
