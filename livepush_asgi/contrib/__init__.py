"""One file per framework: the stream inside a route, with the framework's own authentication."""
