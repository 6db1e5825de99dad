"""What a person, a script or a browser sees of a study: terminal screens, JSON and the HTML report."""
