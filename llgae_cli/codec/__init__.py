"""The codec: rows of data as bits, and back, with the same result on every machine."""
