"""One device and some partitions: the equipment, and a partition from source to sink."""
