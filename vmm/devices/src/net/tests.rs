//! The card by itself: offloads, merged buffers, waiting frames, counters.
