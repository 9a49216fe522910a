"""Safe reading of untrusted HDF5 files: only data inside the file, and only memory in proportion to its size."""
