package main

import "sort"

// summary tells of many durations, in microseconds.
type summary struct {
	Count int   `json:"count"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
	Max   int64 `json:"max"`
}

func summed(values []int64) summary {
	if len(values) == 0 {
		return summary{}
	}
	sort.Slice(values, func(a, b int) bool { return values[a] < values[b] })
	last := len(values) - 1
	return summary{len(values), values[last*50/100], values[last*99/100], values[last]}
}
