"""Files: written whole, read with suspicion, and those that come with modelassay."""
