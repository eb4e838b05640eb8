"""Files that hold many pictures: the pages of PDFs."""
