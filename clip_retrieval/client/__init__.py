"""What `clip_client` sends, and how it reads answers; neither numpy nor torch is loaded."""
