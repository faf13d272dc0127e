// Command rig is the benchmark's other half: an upstream that costs little, and the clients of what is measured.
//
// `rig upstream` answers like an OpenAI-compatible server, as the prompt says; `rig clients` takes one command a line
// (JSON) on its standard input and answers each with one line.
package main

import (
	"fmt"
	"os"
)

func main() {
	run := map[string]func() error{"upstream": serveUpstream, "clients": serveCommands}
	if len(os.Args) != 2 || run[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: rig upstream|clients")
		os.Exit(2)
	}
	if err := run[os.Args[1]](); err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		os.Exit(1)
	}
}
