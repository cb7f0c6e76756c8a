// Command tokenplace is the relay, the node and the client of token.place, and
// a whole network of them on one machine. Run it without arguments for help.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"token.place/internal/telemetry"
)

const usage = `tokenplace lets you use language models on other people's computers without
telling the middle what you asked.

Usage:

	tokenplace COMMAND [flags]

Try it, on this machine alone:

	tokenplace dev           start a relay, two nodes and a local server

Use a network:

	tokenplace serve         OpenAI-compatible server on this machine; seals to nodes
	tokenplace chat          talk to a model in the terminal
	tokenplace models        list the models that are offered, and by which nodes

Lend a computer to a network:

	tokenplace node run      offer a local engine through relays
	tokenplace relay run     carry sealed requests between clients and nodes

	tokenplace version       say which build this is

Every command explains itself with -h. Every flag can be set in the environment:
--listen is TOKENPLACE_LISTEN, --engine-key is TOKENPLACE_ENGINE_KEY. Two commands
that share an environment share what it sets. TOKENPLACE_ENV=development makes logs
talk; the default, production, is quiet.

Example:

	$ tokenplace dev
	$ tokenplace chat 'What is a river?'
	$ curl -N http://127.0.0.1:4117/v1/chat/completions -d '{"model":"pocket",
	    "stream":true,"messages":[{"role":"user","content":"What is a river?"}]}'
`

// streams is what a command reads and writes: results go to out, all else to err.
type streams struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
}

// commands are the subcommands. Each returns nil, errUsage after it has
// explained itself, or an error for a person.
var commands = map[string]func(context.Context, streams, []string) error{
	"dev":       runDev,
	"relay run": runRelay,
	"relay id":  runRelayID,
	"node run":  runNode,
	"node id":   runNodeID,
	"serve":     runServe,
	"chat":      runChat,
	"models":    runModels,
	"version":   runVersion,
}

func main() {
	// net/http and others say things about connections here. What may leave this
	// process leaves through telemetry.
	log.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first Ctrl-C drains; with the handler gone, a second one ends at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, streams{os.Stdin, os.Stdout, os.Stderr, os.Getenv}, os.Args[1:]))
}

// run runs one command and returns the exit status: 0, 1 for a failure, 2 for a
// command that was called wrongly, 130 for one that was interrupted.
func run(ctx context.Context, s streams, args []string) int {
	cmd, rest, err := find(args)
	switch {
	case err != nil:
		fmt.Fprintf(s.err, "tokenplace: %v\n", err)
		return 2
	case cmd == nil:
		out, status := s.out, 0
		if len(args) == 0 {
			out, status = s.err, 2
		}
		io.WriteString(out, usage)
		return status
	}
	var bad usageError
	switch err := cmd(ctx, s, rest); {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 130 // as a shell says of what Ctrl-C ended
	case errors.As(err, &bad):
		fmt.Fprintf(s.err, "tokenplace: %v\nRun tokenplace %s -h for help.\n", err, strings.Join(args[:len(args)-len(rest)], " "))
		return 2
	default:
		fmt.Fprintf(s.err, "tokenplace: %s\n", printable(err.Error()))
		return 1
	}
}

// printable takes out of s what could move a terminal's cursor, set its title or
// reach its clipboard: answers and errors come from other people's computers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || 0x7f <= r && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// find returns the command that args begin with and its own arguments; a nil
// command means that help was asked for.
func find(args []string) (func(context.Context, streams, []string) error, []string, error) {
	if len(args) > 1 && args[0] == "help" {
		args = append(args[1:len(args):len(args)], "-h")
	}
	if len(args) == 0 || args[0] == "help" || isHelp(args[0]) {
		return nil, nil, nil
	}
	if args[0] == "--version" || args[0] == "-version" {
		return runVersion, nil, nil
	}
	if cmd := commands[args[0]]; cmd != nil {
		return cmd, args[1:], nil
	}
	if args[0] == "relay" || args[0] == "node" {
		if len(args) > 1 && commands[args[0]+" "+args[1]] != nil {
			return commands[args[0]+" "+args[1]], args[2:], nil
		}
		if len(args) == 2 && isHelp(args[1]) {
			return commands[args[0]+" run"], args[1:], nil
		}
		return nil, nil, fmt.Errorf("say what the %[1]s should do: tokenplace %[1]s run, or tokenplace %[1]s id", args[0])
	}
	return nil, nil, fmt.Errorf("there is no command %q; run tokenplace -h for a list", clip(args[0]))
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// logger makes where a command logs with one of telemetry's functions, as
// TOKENPLACE_ENV says.
func logger(s streams, with func(telemetry.Environment, io.Writer) *slog.Logger) (*slog.Logger, error) {
	env, err := telemetry.ParseEnvironment(s.getenv("TOKENPLACE_ENV"))
	if err != nil {
		return nil, usageError{err}
	}
	return with(env, s.err), nil
}
