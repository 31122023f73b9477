"""report.html: what an evaluation found, as one page that opens from disk."""
