"""What this process is on its machine: its end, its children, its cores and memory."""
