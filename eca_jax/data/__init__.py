"""Data: sources of encoded images, their preprocessing, and the loader that makes sharded batches of them."""
