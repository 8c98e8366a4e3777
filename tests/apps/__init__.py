"""Applications that the tests serve with real servers."""
