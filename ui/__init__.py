"""The Qt window: panes, plots, theme. No torch, no SQL."""
