"""An opened index folder that answers questions: embed, search, join metadata, find pictures."""
