"""HDF5 files from strangers: what reads them takes from a file only what is in it, in proportion to its size."""
