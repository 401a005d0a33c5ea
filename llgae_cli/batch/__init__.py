"""Commands over whole data sets: what one does with a file, and the same for every shard of a folder."""
