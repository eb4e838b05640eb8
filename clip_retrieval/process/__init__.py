"""This process: signals, child processes, standard streams, cores and memory."""
