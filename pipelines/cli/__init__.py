"""The command line, a module a command; `app` lists them."""
