"""Files that hold many pictures: pages of PDFs, frames of videos, and what is written or said there."""
