#!/bin/sh
# Start this site and stay in the foreground until it is stopped with Ctrl-C; for the background: dipro-fed site start.
exec dipro-fed site start --kit "$(dirname "$0")" --foreground
