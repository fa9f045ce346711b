"""What a server is like for those who keep limits on it: asked, judged, and how to mend it."""
