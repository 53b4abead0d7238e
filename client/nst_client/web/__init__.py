"""`nst web`: a page for everybody who has a browser.

`server.py` knows what is served now, `studio.py` paints the visitors' pictures, `making.py` trains their own styles,
`app.py` is what the browser talks to, and `page/` is what it shows.
"""
