"""Icons, the sample project and the explanations."""
