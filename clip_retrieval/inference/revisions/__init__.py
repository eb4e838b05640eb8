"""Later changes of a folder: --update and --retry_failed."""
