package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"token.place/identity"
)

// usageError is a mistake in how a command was called.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func badUsage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// flags is a command's flags. help is its whole help, written by hand.
type flags struct {
	*flag.FlagSet
	s    streams
	help string
}

func newFlags(s streams, name, help string) *flags {
	f := &flags{flag.NewFlagSet(name, flag.ContinueOnError), s, help}
	f.SetOutput(io.Discard)
	return f
}

// parse reads args, and the environment for each flag that args do not name. It
// returns flag.ErrHelp after it has written the help. With wantArgs flags may
// also stand between and behind the arguments, which it returns; after "--" all
// are arguments.
func (f *flags) parse(args []string, wantArgs bool) (rest []string, err error) {
	var literal []string
	if i := slices.Index(args, "--"); i >= 0 {
		args, literal = args[:i], args[i+1:]
	}
	for len(args) > 0 {
		err := f.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			io.WriteString(f.s.out, f.help)
			return nil, err
		}
		if err != nil {
			return nil, usageError{err}
		}
		if args = f.Args(); len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	if rest = append(rest, literal...); len(rest) > 0 && !wantArgs {
		return nil, badUsage("there is no argument %q to %s; flags start with --", clip(rest[0]), f.Name())
	}
	return rest, f.environment()
}

// environment sets the flags that were not given from TOKENPLACE_….
func (f *flags) environment() (err error) {
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	f.VisitAll(func(fl *flag.Flag) {
		name := "TOKENPLACE_" + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		if v := f.s.getenv(name); v != "" && !given[fl.Name] && err == nil {
			if e := fl.Value.Set(v); e != nil {
				err = badUsage("%s=%q: %w", name, clip(v), e)
			}
		}
	})
	return err
}

// list is a flag that may be given several times; in one string, and so in the
// environment, commas or spaces separate its values.
type list[T any] struct {
	values []T
	parse  func(string) (T, error)
}

func (l *list[T]) String() string { return "" }

func (l *list[T]) Set(s string) error {
	for _, one := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		v, err := l.parse(one)
		if err != nil {
			return err
		}
		l.values = append(l.values, v)
	}
	return nil
}

func (f *flags) relays() *list[identity.Relay] {
	l := &list[identity.Relay]{parse: identity.ParseRelay}
	f.Var(l, "relay", "")
	return l
}

func (f *flags) ids(name string) *list[identity.ID] {
	l := &list[identity.ID]{parse: identity.ParseID}
	f.Var(l, name, "")
	return l
}

// identityFile is --identity, with a place for it in the user's configuration.
func (f *flags) identityFile(role string) *string {
	place := ""
	if dir, err := os.UserConfigDir(); err == nil && filepath.IsAbs(dir) {
		place = filepath.Join(dir, "tokenplace", role+".pem")
	}
	return f.String("identity", place, "")
}

// loadIdentity loads what identityFile names. There is no fallback to the current
// folder: from another folder it would be another identity.
func loadIdentity(file string) (*identity.Credential, error) {
	if file == "" {
		return nil, badUsage("there is no home folder to keep the identity in: set HOME, or name a file with --identity")
	}
	return identity.LoadCredential(file)
}

func (f *flags) words(name string) *list[string] {
	l := &list[string]{parse: func(s string) (string, error) { return s, nil }}
	f.Var(l, name, "")
	return l
}
