"""HTML pages that need no other file: tables, tiles, charts."""
