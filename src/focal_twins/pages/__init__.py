"""Makes HTML pages that need no other file, with tables, tiles and charts."""
