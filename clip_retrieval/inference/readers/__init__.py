"""Reader processes: samples to rows and pixels."""
