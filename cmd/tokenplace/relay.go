package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"syscall"

	"token.place/identity"
	"token.place/internal/telemetry"
	"token.place/relay"
)

const relayUsage = `Usage:

	tokenplace relay run [--listen ADDR] [--public-url URL] [--allow ID]...
	                     [--identity FILE] [--json]
	tokenplace relay id [--identity FILE]

Carries sealed requests from clients to nodes, and sealed answers back. It cannot
read either. Everything arrives on one TLS port. The relay prints the URL that
nodes and clients are given; the part after # is its ID, derived from its key,
and lets them recognise it without a certificate authority.

	--listen ADDR     where to listen; default :8443
	--public-url URL  how others reach this relay, for the line it prints, when that
	                  is not the address it listens on: https://relay.example:443
	--allow ID        carry for this node only; give it again for more. Without it,
	                  for every node that proves its key: clients, who pin their
	                  nodes, are safe either way
	--identity FILE   the relay's key, made if it is not there;
	                  default tokenplace/relay.pem in the user's configuration
	--json            print one JSON line: {"id":…,"relay":…,"listen":…}

relay id prints the ID. Ctrl-C drains: nodes are sent elsewhere, running answers
have 30 s to finish.

Example:

	$ tokenplace relay run --listen 127.0.0.1:8443
	https://127.0.0.1:8443/#rvsxhs6y6rqn5uzpbdjq2lgr4e
`

func runRelay(ctx context.Context, s streams, args []string) error {
	f := newFlags(s, "relay run", relayUsage)
	listen := f.String("listen", ":8443", "")
	public := f.String("public-url", "", "")
	nodes := f.ids("allow")
	file := f.identityFile("relay")
	asJSON := f.Bool("json", false, "")
	if _, err := f.parse(args, false); err != nil {
		return err
	}
	log, err := logger(s, telemetry.New)
	if err != nil {
		return err
	}
	cred, err := loadIdentity(*file)
	if err != nil {
		return err
	}
	tuneGC()
	r, err := relay.New(relay.Config{Credential: cred, Nodes: nodes.values, Log: log})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return listenError(*listen, err)
	}
	address, err := relayURL(*public, ln.Addr())
	if err != nil {
		ln.Close()
		return err
	}
	address += "/#" + string(cred.ID())
	if *asJSON {
		json.NewEncoder(s.out).Encode(struct {
			ID     identity.ID `json:"id"`
			Relay  string      `json:"relay"`
			Listen string      `json:"listen"`
		}{cred.ID(), address, ln.Addr().String()})
	} else {
		fmt.Fprintln(s.out, address)
		fmt.Fprintf(s.err, "Nodes join with: %s node run --relay %s\n", program(), address)
	}
	return r.Serve(ctx, ln)
}

// relayURL is how others reach a relay that listens at addr.
func relayURL(public string, addr net.Addr) (string, error) {
	if public != "" {
		r, err := identity.ParseRelay(public)
		if err != nil {
			return "", badUsage("--public-url: %w", err)
		}
		return r.URL.String(), nil
	}
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return "", fmt.Errorf("listening address: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		// Which of this machine's names others use is not for us to guess, and a
		// loopback URL at least works here.
		host = "localhost"
	}
	return (&url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)}).String(), nil
}

func listenError(addr string, err error) error {
	if _, _, bad := net.SplitHostPort(addr); bad != nil {
		return badUsage("--listen %s: want host:port, as in 127.0.0.1:8443", clip(addr))
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("cannot listen on %s: another program does. Stop it, or choose another address with --listen; port 0 takes any free one", addr)
	}
	return fmt.Errorf("cannot listen on %s: %w. Choose another address with --listen", addr, err)
}

func runRelayID(_ context.Context, s streams, args []string) error {
	return printID(s, "relay", relayUsage, args)
}

// printID prints the ID in an identity file, which it makes if need be.
func printID(s streams, role, help string, args []string) error {
	f := newFlags(s, role+" id", help)
	file := f.identityFile(role)
	if _, err := f.parse(args, false); err != nil {
		return err
	}
	cred, err := loadIdentity(*file)
	if err != nil {
		return err
	}
	fmt.Fprintln(s.out, cred.ID())
	return nil
}
