"""Names to objects: plugins, the catalog of components, options, configuration. No torch at module level."""
