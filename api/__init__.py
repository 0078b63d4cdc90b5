"""The front door: takes jobs over HTTP, hands results out once. Knows nothing of torch or PIL."""
