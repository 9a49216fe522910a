"""One torch thread: with networks of test size, waiting OpenMP threads cost more than they bring."""

import torch as th

th.set_num_threads(1)
