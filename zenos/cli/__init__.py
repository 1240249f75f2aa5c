"""The command line: one file per noun, all of it over the typed client."""
