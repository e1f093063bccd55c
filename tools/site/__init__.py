"""The docs as a site: pages made from the source, and the settings of Sphinx."""
