"""Where arrays lie: a stage's mesh, the rules from logical to mesh axes, and the stage itself."""
