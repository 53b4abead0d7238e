"""How documents are drawn: tables and plots of any suite and of the larger ones, in Markdown, HTML and a terminal."""
