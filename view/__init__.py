"""What the pages are drawn with: state, URL, forms, charts and pictures."""
