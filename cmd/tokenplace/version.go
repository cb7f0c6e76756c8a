package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"token.place/engine/pocket"
)

const versionUsage = `Usage:

	tokenplace version [--json | --notices]

Prints the version, the source revision it was built from and the Go release.

	--json      as one JSON line
	--notices   what the authors of the built-in model's training text ask to be told
	            with every copy
`

type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func thisBuild() build {
	b := build{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func runVersion(_ context.Context, s streams, args []string) error {
	f := newFlags(s, "version", versionUsage)
	asJSON := f.Bool("json", false, "")
	notices := f.Bool("notices", false, "")
	if _, err := f.parse(args, false); err != nil {
		return err
	}
	if *notices {
		_, err := io.WriteString(s.out, pocket.Notice)
		return err
	}
	b := thisBuild()
	if *asJSON {
		return json.NewEncoder(s.out).Encode(b)
	}
	fmt.Fprintf(s.out, "tokenplace %s, %s, %s\n", b.Version, b.Go, b.Platform)
	if b.Revision != "" {
		fmt.Fprintf(s.out, "built from %s\n", b.Revision)
	}
	return nil
}
