"""`mcp`: an index folder as tools of a language model."""
