"""The command line: read arguments, call one library function, print."""
