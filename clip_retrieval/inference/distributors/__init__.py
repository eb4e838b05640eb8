"""Where workers run: `run_worker(config, partition_ids, device)`, here or on other machines."""
