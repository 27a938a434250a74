// Command psx-peer shares a device's internet connection through a psx relay, with its owner's recorded agreement.
//
// One process is one device: an identity from the API, one to eight WebSockets to a relay, and tunnels over them to targets
// that the egress policy allows. It speaks binary-v2 (credit windows, half-close, resumption) and binary-v1. The protocols
// are specified in docs/protocol; the rules of a tunnel's end here are those of its stream vectors.
//
// Order of this file: settings, consent, state, limits, API, egress, frames, stream, outbox, tunnels of v2, sessions of
// v1, relay socket, device, main. Locks: a stream's comes before those of a socket, the table and an outbox, which are leaves.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

const (
	version      = "0.1.0"
	termsVersion = "2026-11"
	termsText    = `Sharing this device's connection:
  - customers' web traffic leaves through your internet connection, and uses your data allowance;
  - you are paid per GB that was carried; the rate is shown when the device registers;
  - your local network, mail ports and private addresses are never reachable through it;
  - you can stop at any time with Ctrl-C (or by stopping the process); open connections end at once.
`
	withdrawnText = "consent was withdrawn: nothing is shared until the owner agrees again, on a terminal or by the account's API key"

	maxSockets           = 8
	maxTunnels           = 256
	messageMaxBytes      = 4*1024*1024 + 512
	textMaxBytes         = 1024 * 1024
	textMaxBrackets      = 256
	answerMaxBytes       = 1024 * 1024
	stateMaxBytes        = 64 * 1024
	controlMaxFrames     = 16 * 1024
	loggedMaxChars       = 200
	windowStartBytes     = 256 * 1024
	windowMaxBytes       = 4 * 1024 * 1024
	windowsMaxBytes      = 64 * 1024 * 1024
	pendingHighBytes     = 64 * 1024
	smallBytes           = 1024
	joinedMaxBytes       = 4096
	apartMax             = 64 // small pieces that are kept as they came: each takes a hundred bytes besides its own
	dataMaxBytes         = 64 * 1024
	targetHighBytes      = 256 * 1024
	targetLowBytes       = 64 * 1024
	sessionQueueBytes    = 8 * 1024 * 1024
	addressesTried       = 4
	apiTimeout           = 15 * time.Second
	connectTimeout       = 15 * time.Second
	flushMax             = 30 * time.Second
	blockedMax           = 30 * time.Second
	goodbyeMax           = 300 * time.Millisecond
	allowedCheck         = 20 * time.Second
	backoffMax           = 60 * time.Second
	hurryMin             = 50 * time.Millisecond
	hurryMax             = 500 * time.Millisecond
	burst                = 0.25 // of a second's allowance
	protocolV1           = "binary-v1"
	protocolV2           = "binary-v2"
	closeNormal          = 1000
	closeProtocol        = 1002
	closeLost            = 1006
	closeIdentityInvalid = 4001
	closeIdentityRevoked = 4002
	closeRedirected      = 4100
)

// ---- settings

// times are waits; a lab may shorten them (PSX_LAB_TIMES), nobody else. dead and one tick make the 45 s within which a dead
// path is noticed.
type times struct {
	redialMin, redialMax, heartbeat, dead, streamsDead, tick, wake, idle, redirect, resume, dial time.Duration
}

func defaultTimes() times {
	return times{
		redialMin: 5 * time.Second, redialMax: 7 * time.Second, heartbeat: 30 * time.Second, dead: 40 * time.Second,
		streamsDead: 15 * time.Second, tick: 5 * time.Second, wake: 10 * time.Second, idle: 960 * time.Second,
		redirect: 60 * time.Second, resume: 20 * time.Second, dial: 8 * time.Second,
	}
}

func (t *times) set(text string) error {
	fields := map[string]*time.Duration{
		"redial_min": &t.redialMin, "redial_max": &t.redialMax, "heartbeat": &t.heartbeat, "dead": &t.dead,
		"streams_dead": &t.streamsDead, "tick": &t.tick, "wake": &t.wake, "idle": &t.idle, "redirect": &t.redirect,
		"resume": &t.resume, "dial": &t.dial,
	}
	for _, entry := range strings.Split(text, ",") {
		name, value, _ := strings.Cut(entry, "=")
		if field := fields[name]; field != nil {
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return fmt.Errorf("PSX_LAB_TIMES: %s is no number of seconds", name)
			}
			*field = time.Duration(seconds * float64(time.Second))
		}
	}
	return nil
}

type settings struct {
	api, key, name, country, wallet, state, relay, bind, caFile, protocol string
	connections                                                           int
	limitMbit                                                             float64
	schedule                                                              *schedule
	onlyCharging, randomName, verbose, dryRun, withdraw                   bool
	consent                                                               consent
	labAllow                                                              map[netip.AddrPort]bool
	own                                                                   ownNetworks
	times                                                                 times
}

type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func wrong(format string, given ...any) error { return usageError{fmt.Sprintf(format, given...)} }

func truth(text string) bool { return text == "true" || text == "1" || text == "yes" }

func readSettings(arguments []string) (*settings, error) {
	s := &settings{times: defaultTimes(), labAllow: map[netip.AddrPort]bool{}}
	flags := flag.NewFlagSet("psx-peer", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	env := os.Getenv
	or := func(value, otherwise string) string {
		if value == "" {
			return otherwise
		}
		return value
	}
	home, _ := os.UserHomeDir()
	text := func(to *string, name, variable, otherwise, what string) {
		if variable != "" {
			what += " [" + variable + "]"
			otherwise = or(env(variable), otherwise)
		}
		flags.StringVar(to, name, otherwise, what)
	}
	var keyFile, connections, limit, hours, terms string
	text(&s.api, "api", "PSX_API", "", "API base URL")
	text(&s.key, "key", "API_KEY", "", "API key; others can read a command line, so rather use the variable or -key-file")
	text(&keyFile, "key-file", "", "", "file that holds the API key")
	text(&s.name, "name", "AGENT_NAME", "", "stable name of this device")
	text(&s.country, "country", "COUNTRY", "US", "country; the API decides by the address")
	text(&connections, "connections", "WS_CONNECTIONS", "4", "relay sockets, 1-8")
	text(&s.wallet, "wallet", "WALLET", "", "payout wallet")
	text(&s.state, "state", "PEER_STATE_FILE", filepath.Join(home, ".psx-peer-state.json"), "identity file")
	text(&s.relay, "relay", "RELAY_URL", "", "pin a relay; else the API chooses")
	text(&s.bind, "bind", "PEER_BIND", "", "local address of all connections")
	text(&s.caFile, "ca-file", "PSX_CA_FILE", "", "trust these certificates instead of the system's")
	text(&limit, "limit-mbit", "PSX_LIMIT_MBIT", "", "at most so many Mbit/s, both directions together")
	text(&hours, "schedule", "PSX_SCHEDULE", "", "share only at these hours, HH:MM-HH:MM, local time")
	text(&terms, "accept-terms", "PSX_ACCEPT_TERMS", "", "agree to version "+termsVersion+" of the terms")
	flags.BoolVar(&s.onlyCharging, "only-charging", truth(env("PSX_ONLY_CHARGING")), "share only on mains power [PSX_ONLY_CHARGING]")
	flags.BoolVar(&s.randomName, "random-name", false, "be a new device at every start")
	flags.BoolVar(&s.withdraw, "withdraw", false, "take the agreement back: what runs ends within seconds")
	flags.BoolVar(&s.verbose, "verbose", truth(env("VERBOSE")), "log tunnels [VERBOSE]")
	flags.BoolVar(&s.dryRun, "dry-run", false, "show what would be done, and do nothing")
	showVersion := flags.Bool("version", false, "show the version")
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Println("psx-peer: share this device's internet connection and earn USDC. Flags, and the variables they read:")
			flags.VisitAll(func(f *flag.Flag) { fmt.Printf("  -%s\n    \t%s\n", f.Name, f.Usage) })
			return nil, flag.ErrHelp
		}
		return nil, wrong("%v", err)
	}
	if *showVersion {
		fmt.Println("psx-peer", version)
		return nil, flag.ErrHelp
	}
	if flags.NArg() > 0 {
		return nil, wrong("unknown argument %q", flags.Arg(0))
	}
	return s, s.check(keyFile, connections, limit, hours, terms)
}

func (s *settings) check(keyFile, connections, limit, hours, terms string) error {
	lab := os.Getenv("PSX_STAGE") == "local"
	if keyFile != "" {
		raw, err := os.ReadFile(keyFile)
		if err != nil {
			return wrong("-key-file: %v", err)
		}
		s.key = strings.TrimSpace(string(raw))
	}
	s.api = strings.TrimRight(s.api, "/")
	count, err := strconv.Atoi(connections)
	switch {
	case s.api == "":
		return wrong("-api is missing: the API's base URL")
	case !strings.HasPrefix(s.api, "https://") && !lab:
		return wrong("-api must begin with https://: the API key would travel in the clear")
	case s.key == "" && s.wallet == "" && !s.withdraw:
		return wrong("no API key: set API_KEY or -key-file (or give -wallet alone)")
	case err != nil || count < 1 || count > maxSockets:
		return wrong("-connections must be 1 to 8")
	}
	s.connections = count
	if limit != "" {
		if s.limitMbit, err = strconv.ParseFloat(limit, 64); err != nil || !(s.limitMbit > 0 && s.limitMbit < 1e6) {
			return wrong("-limit-mbit must be a number above 0")
		}
	}
	if hours != "" {
		if s.schedule = parseSchedule(hours); s.schedule == nil {
			return wrong("a schedule is HH:MM-HH:MM")
		}
	}
	if s.onlyCharging {
		if _, known := onCharger("/sys/class/power_supply"); !known {
			return wrong("-only-charging: this machine does not say whether it is on mains power")
		}
	}
	s.protocol = protocolV2
	if os.Getenv("PSX_PROTOCOL") == protocolV1 {
		s.protocol = protocolV1
	}
	if lab {
		for _, entry := range strings.Split(os.Getenv("PSX_EGRESS_LAB_ALLOW"), ",") {
			if pair, err := netip.ParseAddrPort(entry); err == nil {
				s.labAllow[pair] = true
			}
		}
		if err := s.times.set(os.Getenv("PSX_LAB_TIMES")); err != nil {
			return wrong("%v", err)
		}
	}
	return s.identify(terms)
}

// identify settles the name and the agreement with what an earlier start kept.
func (s *settings) identify(terms string) error {
	var kept state
	if !s.randomName {
		kept = readState(s.state)
	}
	if s.randomName || (s.name == "" && kept.Name == "") {
		host, _ := os.Hostname()
		s.name = host + "-" + hex.EncodeToString(randomBytes(4))
	} else if s.name == "" {
		s.name = kept.Name
	}
	if s.dryRun || s.withdraw {
		s.consent = consent{TermsVersion: terms}
		return nil
	}
	given, err := obtainConsent(terms, kept.Consent)
	s.consent = given
	return err
}

func randomBytes(size int) []byte {
	raw := make([]byte, size)
	if _, err := rand.Read(raw); err != nil {
		panic(err)
	}
	return raw
}

// ---- consent

// consent is a recorded agreement; the time is in unix milliseconds.
type consent struct {
	TermsVersion string `json:"termsVersion"`
	AcceptedAt   int64  `json:"acceptedAt"`
	Method       string `json:"method"`
}

func obtainConsent(given string, kept *consent) (consent, error) {
	now := time.Now().UnixMilli()
	valid := kept != nil && kept.TermsVersion == termsVersion && kept.Method != ""
	switch {
	case given != "" && given != termsVersion:
		return consent{}, wrong("these are not the terms: -accept-terms must be %s", termsVersion)
	case valid:
		return *kept, nil
	case given != "":
		return consent{termsVersion, now, "flag"}, nil
	}
	if about, err := os.Stdin.Stat(); err != nil || about.Mode()&os.ModeCharDevice == 0 || about.Name() == os.DevNull ||
		!isTerminal(about) {
		return consent{}, wrong("-accept-terms %s is needed: the owner must agree to share this connection", termsVersion)
	}
	fmt.Print(termsText + "Do you agree? [y/N] ")
	line, _ := bufio.NewReader(io.LimitReader(os.Stdin, 1024)).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return consent{}, wrong("not agreed: nothing was shared")
	}
	return consent{termsVersion, now, "terminal"}, nil
}

// isTerminal tells a terminal from the null device: both are character devices.
func isTerminal(about os.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(about, null)
}

// ---- state

// state is what a device keeps between starts; the file is the same for every SDK. After a withdrawal of consent it holds
// the name, and the device's id as Withdrawn.
type state struct {
	Name         string   `json:"name"`
	DeviceID     string   `json:"deviceId,omitempty"`
	RefreshToken string   `json:"refreshToken,omitempty"`
	Consent      *consent `json:"consent,omitempty"`
	Withdrawn    string   `json:"withdrawn,omitempty"`
	Attempt      string   `json:"attempt,omitempty"` // while a registration is not answered
}

func readState(path string) state {
	var found state
	file, err := os.Open(path)
	if err != nil {
		return state{}
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, stateMaxBytes))
	if err != nil || json.Unmarshal(raw, &found) != nil {
		return state{}
	}
	return found
}

// writeState keeps it whole or not at all, readable by the owner alone.
func writeState(path string, kept state) error {
	raw, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.part") // made with mode 0600
	if err != nil {
		return err
	}
	_, err = part.Write(raw)
	if err = errors.Join(err, part.Close()); err == nil {
		err = os.Rename(part.Name(), path)
	}
	if err != nil {
		os.Remove(part.Name())
	}
	return err
}

// holdState says that this process uses the state file, so that two instances never share one identity by accident.
func holdState(path string) (release func(), err error) {
	lock := path + ".lock"
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	for range 2 {
		file, err := os.OpenFile(lock, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			fmt.Fprint(file, os.Getpid())
			return func() { os.Remove(lock) }, file.Close()
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if holderRuns(lock) {
			break
		}
		os.Remove(lock)
	}
	return nil, fmt.Errorf("another instance uses %s: give each one its own name and state file", path)
}

func holderRuns(lock string) bool {
	raw, err := os.ReadFile(lock)
	holder, bad := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || bad != nil || holder == os.Getpid() { // the first process of a container that was started anew
		return false
	}
	process, err := os.FindProcess(holder)
	if err != nil {
		return false
	}
	if runtime.GOOS == "windows" {
		return true
	}
	err = process.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, syscall.EPERM)
}

// ---- limits: how fast, and when

// allowance is a token bucket over both directions of all tunnels; a rate of 0 never waits.
type allowance struct {
	mu   sync.Mutex
	rate float64 // bytes a second
	left float64
	at   time.Time
}

func newAllowance(megabits float64) *allowance {
	rate := megabits * 1e6 / 8
	return &allowance{rate: rate, left: rate * burst}
}

// spend takes what was just carried, and tells for how long nothing more should be.
func (a *allowance) spend(size int) time.Duration {
	if a.rate == 0 {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if !a.at.IsZero() {
		a.left = min(a.rate*burst, a.left+now.Sub(a.at).Seconds()*a.rate)
	}
	a.at = now
	a.left -= float64(size)
	return max(0, time.Duration(-a.left/a.rate*float64(time.Second)))
}

// schedule is a span of minutes of the day, over midnight when it ends before it begins.
type schedule struct{ from, to int }

var spanPattern = regexp.MustCompile(`^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$`)

func parseSchedule(text string) *schedule {
	found := spanPattern.FindStringSubmatch(text)
	if found == nil {
		return nil
	}
	at := func(i int) int { n, _ := strconv.Atoi(found[i]); return n }
	return &schedule{at(1)*60 + at(2), at(3)*60 + at(4)}
}

func (s *schedule) openAt(when time.Time) bool {
	minute := when.Hour()*60 + when.Minute()
	if s.from < s.to {
		return s.from <= minute && minute < s.to
	}
	return minute >= s.from || minute < s.to
}

// onCharger tells whether the machine has mains power, and whether the platform says so at all (Linux does).
func onCharger(folder string) (charging, known bool) {
	read := func(pattern string) (words []string) {
		paths, _ := filepath.Glob(filepath.Join(folder, pattern))
		for _, path := range paths {
			raw, _ := os.ReadFile(path)
			words = append(words, strings.TrimSpace(string(raw)))
		}
		return words
	}
	if online := read("*/online"); len(online) > 0 {
		return slices.Contains(online, "1"), true
	}
	batteries := read("BAT*/status")
	return !slices.Contains(batteries, "Discharging"), len(batteries) > 0
}

func (s *settings) allowed() bool {
	if s.onlyCharging {
		if charging, known := onCharger("/sys/class/power_supply"); known && !charging {
			return false
		}
	}
	return s.schedule == nil || s.schedule.openAt(time.Now())
}

// ---- API

type identity struct {
	deviceID, token, refreshToken, relay string
	relays                               []string
}

// refused is an error answer of the API.
type refused struct {
	status        int
	code, message string
}

func (r refused) Error() string { return fmt.Sprintf("%d: %s", r.status, r.message) }

func (r refused) passes() bool {
	return r.status >= 500 || r.status == 429 || r.code == "IDEMPOTENCY_IN_PROGRESS"
}

// withdrawn tells that the owner took the agreement back: no SDK agrees in an owner's place.
func (r refused) withdrawn() bool { return r.code == "CONSENT_WITHDRAWN" }

// keeper gives the current identity and renews it once for everybody who finds it stale.
type keeper struct {
	s       *settings
	client  *http.Client
	mu      sync.Mutex
	current *identity
	attempt string
	over    error // the API's last word: no other socket asks again
}

func newKeeper(s *settings, trust *tls.Config) *keeper {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust, DialContext: s.dialer().DialContext,
		MaxIdleConns: 1, IdleConnTimeout: apiTimeout,
	}
	follow := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &keeper{s: s, client: &http.Client{Transport: transport, Timeout: apiTimeout, CheckRedirect: follow}}
}

func (k *keeper) get(ctx context.Context, stale *identity) (*identity, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != nil && (stale == nil || k.current.token != stale.token) {
		return k.current, nil
	}
	kept := state{}
	if stale != nil {
		kept.DeviceID, kept.RefreshToken = stale.deviceID, stale.refreshToken
	} else if !k.s.randomName {
		if kept = readState(k.s.state); kept.Name != "" && kept.Name != k.s.name {
			kept = state{}
		}
	}
	if k.over != nil {
		return nil, k.over
	}
	found, err := k.obtain(ctx, kept)
	if err == nil {
		k.current = found
	}
	var no refused
	if errors.As(err, &no) && !no.passes() {
		k.over, k.attempt = err, ""
		if kept := readState(k.s.state); !k.s.randomName && kept.Attempt != "" && kept.Name == k.s.name {
			kept.Attempt = ""
			_ = writeState(k.s.state, kept) // another registration is another attempt
		}
	}
	if k.over != nil && no.withdrawn() && !k.s.randomName {
		device := kept.DeviceID
		if device == "" {
			device = kept.Withdrawn
		}
		if lost := writeState(k.s.state, state{Name: k.s.name, Withdrawn: device}); lost != nil {
			log.Printf("state file: %v", lost)
		}
	}
	return found, err
}

func (k *keeper) obtain(ctx context.Context, kept state) (*identity, error) {
	if kept.DeviceID != "" && kept.RefreshToken != "" {
		path := "/v1/peer/agents/" + url.PathEscape(kept.DeviceID) + "/refresh"
		answer, err := k.call(ctx, http.MethodPost, path, map[string]any{"refreshToken": kept.RefreshToken}, "", "")
		if err == nil {
			return k.keep(kept.DeviceID, kept.RefreshToken, answer)
		}
		var no refused
		if !errors.As(err, &no) || no.passes() || no.withdrawn() {
			return nil, err
		}
	}
	if kept.Withdrawn != "" && k.s.key != "" && k.s.consent.Method != "flag" {
		// a person agreed anew: what is sent along with a registration does not count
		path := "/v1/peer/my-devices/" + url.PathEscape(kept.Withdrawn) + "/consent"
		if _, err := k.call(ctx, http.MethodPost, path, k.s.consent, "X-API-Key", k.s.key); err != nil {
			return nil, err
		}
	}
	body := map[string]any{
		"name": k.s.name, "type": "go", "connectionMethod": "relay", "sdkVersion": "go-" + version, "consent": k.s.consent,
		"ownerTokens": true,
	}
	if k.s.key != "" {
		body["apiKey"] = k.s.key
	}
	if k.s.wallet != "" {
		body["walletAddress"] = k.s.wallet
	}
	once, err := k.attemptKey(kept, body)
	if err != nil {
		return nil, err
	}
	answer, err := k.call(ctx, http.MethodPost, "/v1/peer/agents/register", body, "Idempotency-Key", once)
	if err != nil {
		return nil, err
	}
	if answer.Token == "" || answer.DeviceID == "" {
		return nil, errors.New("answer not understood")
	}
	return k.keep(answer.DeviceID, "", answer)
}

// attemptKey names a registration until it is answered, also over a restart: whoever lost the answer gets it again, and a
// device without an API key is known by it as the one that began.
func (k *keeper) attemptKey(kept state, body map[string]any) (string, error) {
	if k.attempt == "" {
		k.attempt = kept.Attempt
	}
	if k.attempt == "" {
		raw := make([]byte, 16)
		if _, err := rand.Read(raw); err != nil {
			return "", err
		}
		k.attempt = hex.EncodeToString(raw)
	}
	if !k.s.randomName && kept.Attempt != k.attempt {
		kept.Name, kept.Consent, kept.Attempt = k.s.name, &k.s.consent, k.attempt
		if err := writeState(k.s.state, kept); err != nil {
			return "", fmt.Errorf("state file: %w", err)
		}
	}
	said, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(k.attempt+"\n"), said...))
	return hex.EncodeToString(sum[:]), nil
}

// withdraw takes the agreement back, by the owner's key or by the device's own token.
func (k *keeper) withdraw(ctx context.Context) error {
	kept := readState(k.s.state)
	if kept.DeviceID == "" || kept.RefreshToken == "" || kept.Name != k.s.name {
		return wrong("%s holds no registered device of this name", k.s.state)
	}
	path, header, credential := "/v1/peer/my-devices/", "X-API-Key", k.s.key
	if k.s.key == "" {
		refresh := "/v1/peer/agents/" + url.PathEscape(kept.DeviceID) + "/refresh"
		body := map[string]any{"refreshToken": kept.RefreshToken, "purpose": "owner"}
		answer, err := k.call(ctx, http.MethodPost, refresh, body, "", "")
		if err != nil {
			return err
		}
		if answer.RefreshToken != "" { // the one that was shown is spent, whatever becomes of the order
			kept.RefreshToken = answer.RefreshToken
			if err := writeState(k.s.state, kept); err != nil {
				return err
			}
		}
		path, header, credential = "/v1/peer/agents/", "Authorization", "Bearer "+answer.Token
	}
	path += url.PathEscape(kept.DeviceID) + "/consent"
	if _, err := k.call(ctx, http.MethodDelete, path, struct{}{}, header, credential); err != nil {
		return err
	}
	return writeState(k.s.state, state{Name: k.s.name, Withdrawn: kept.DeviceID})
}

type apiAnswer struct {
	DeviceID     string   `json:"deviceId"`
	Token        string   `json:"token"`
	RefreshToken string   `json:"refreshToken"`
	Relay        string   `json:"relay"`
	Relays       []string `json:"relays"`
	Code         string   `json:"code"`
	Message      string   `json:"message"`

	EarningsPerGB json.Number `json:"earningsPerGB"`
}

// call makes one JSON call, with a header for who calls; without one the answer must hold a token.
func (k *keeper) call(ctx context.Context, method, path string, body any, header, credential string) (*apiAnswer, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, k.s.api+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if header != "" {
		request.Header.Set(header, credential)
	}
	response, err := k.client.Do(request)
	if err != nil {
		return nil, errors.New("not reached") // the library's words may hold more than a log should
	}
	defer response.Body.Close()
	raw, err = io.ReadAll(io.LimitReader(response.Body, answerMaxBytes))
	if err != nil {
		return nil, errors.New("answer cut short")
	}
	var answer apiAnswer
	parsed := json.Unmarshal(raw, &answer)
	if response.StatusCode != http.StatusOK {
		return nil, refused{response.StatusCode, answer.Code, printable(answer.Message)}
	}
	if parsed != nil || (answer.Token == "" && header == "") {
		return nil, errors.New("answer not understood")
	}
	return &answer, nil
}

func (k *keeper) keep(deviceID, before string, answer *apiAnswer) (*identity, error) {
	k.attempt = ""
	found := &identity{deviceID, answer.Token, answer.RefreshToken, answer.Relay, answer.Relays}
	if found.refreshToken == "" {
		found.refreshToken = before
	}
	if k.s.relay != "" {
		found.relay = k.s.relay
	}
	if !k.s.randomName {
		if err := writeState(k.s.state, state{Name: k.s.name, DeviceID: deviceID, RefreshToken: found.refreshToken, Consent: &k.s.consent}); err != nil {
			return nil, fmt.Errorf("state file: %w", err)
		}
	}
	log.Printf("[REGISTERED] device=%s relay=%s sockets=%d usdcPerGB=%s",
		printable(deviceID), printable(found.relay), k.s.connections, printable(answer.EarningsPerGB.String()))
	return found, nil
}

func (s *settings) dialer() *net.Dialer {
	dialer := &net.Dialer{Timeout: connectTimeout}
	if s.bind != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(s.bind)}
	}
	return dialer
}

func (s *settings) trust() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.caFile != "" {
		raw, err := os.ReadFile(s.caFile)
		if err != nil {
			return nil, wrong("-ca-file: %v", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(raw) {
			return nil, wrong("-ca-file holds no certificate")
		}
	}
	return config, nil
}

// printable makes what others wrote fit for a log: one line, bounded.
func printable(text string) string {
	count := 0
	return strings.Map(func(r rune) rune {
		if count++; count > loggedMaxChars {
			return -1
		}
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// ---- egress

var specialPrefixes = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	"2001::/23", "2001:db8::/32", "3fff::/20",
)
var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	sixToFour     = netip.MustParsePrefix("2002::/16")
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	compatible    = netip.MustParsePrefix("::/96")
)

func prefixes(texts ...string) (found []netip.Prefix) {
	for _, text := range texts {
		found = append(found, netip.MustParsePrefix(text))
	}
	return found
}

// egressVerdict judges the address and port that are about to be dialled; "" allows them. IPv4 inside IPv6 is unwrapped.
func (s *settings) egressVerdict(address netip.Addr, port int, own []netip.Prefix) string {
	if port > 0 && port <= 65535 && s.labAllow[netip.AddrPortFrom(address, uint16(port))] {
		return ""
	}
	if port <= 0 || port > 65535 || port == 25 || port == 465 || port == 587 || port == 2525 {
		return "blocked_port"
	}
	if address.Zone() != "" || !isPublic(address) {
		return "private_address"
	}
	if holds(own, address) || holds(own, unwrapped(address)) {
		return "own_network"
	}
	return ""
}

func holds(networks []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(address) })
}

// unwrapped is the IPv4 address inside an IPv6 one, or the address itself.
func unwrapped(address netip.Addr) netip.Addr {
	address = address.Unmap()
	if address.Is6() {
		raw := address.As16()
		switch {
		case sixToFour.Contains(address):
			return netip.AddrFrom4([4]byte(raw[2:6]))
		case nat64.Contains(address), compatible.Contains(address):
			return netip.AddrFrom4([4]byte(raw[12:16]))
		}
	}
	return address
}

func isPublic(address netip.Addr) bool {
	address = unwrapped(address)
	return (address.Is4() || globalUnicast.Contains(address)) && !holds(specialPrefixes, address)
}

const (
	ownFresh   = 10 * time.Second // a device that changes networks loses its sockets anyway
	ownToldMax = 16               // addresses that relays told: each socket may leave by another one
)

// ownNetworks are the owner's although they are public: those of this machine's interfaces, and where relays see it.
type ownNetworks struct {
	mu         sync.Mutex
	toldOf     []netip.Prefix
	interfaces []netip.Prefix
	read       time.Time
}

// ownNetwork is what is a device's own for having an address: with an interface's prefix, or -1 as others see it. Of IPv6
// never less than the /64; an interface that claims too much is set wrong.
func ownNetwork(address netip.Addr, bits int) netip.Prefix {
	if address.Is4In6() {
		address, bits = address.Unmap(), -1
	}
	least, alone := 8, 32
	if address.Is6() {
		least, alone = 32, 64
	}
	if bits < least || bits > alone {
		bits = alone
	}
	return netip.PrefixFrom(address.WithZone(""), bits).Masked()
}

func (o *ownNetworks) told(text string) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return
	}
	network := ownNetwork(address, -1)
	o.mu.Lock()
	defer o.mu.Unlock()
	kept := slices.DeleteFunc(slices.Clone(o.toldOf), func(p netip.Prefix) bool { return p == network })
	o.toldOf = append(kept[max(0, len(kept)-ownToldMax+1):], network)
}

func (o *ownNetworks) networks() []netip.Prefix {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.read.IsZero() || time.Since(o.read) > ownFresh {
		o.read, o.interfaces = time.Now(), nil
		found, _ := net.InterfaceAddrs()
		for _, entry := range found {
			if prefix, err := netip.ParsePrefix(entry.String()); err == nil {
				o.interfaces = append(o.interfaces, ownNetwork(prefix.Addr(), prefix.Bits()))
			}
		}
	}
	return slices.Concat(o.toldOf, o.interfaces)
}

// dialFailure says why a target was not reached, in the words of both protocols.
type dialFailure struct {
	reason byte   // of v2
	word   string // of v1
	detail string
}

func (f *dialFailure) Error() string { return f.detail }

var errEgress = errors.New("egress policy")

// dialTarget connects to a target. Every address that a name has must be allowed, and what is dialled is what was judged.
func (s *settings) dialTarget(ctx context.Context, host string, port int) (*net.TCPConn, *dialFailure) {
	ctx, cancel := context.WithTimeout(ctx, s.times.dial)
	defer cancel()
	policy := func(verdict string) *dialFailure {
		return &dialFailure{reasonEgress, "connection_refused", "egress policy: " + verdict}
	}
	if port <= 0 || port > 65535 {
		return nil, policy("blocked_port")
	}
	var found []netip.Addr
	if literal, err := netip.ParseAddr(host); err == nil {
		found = []netip.Addr{literal}
	} else if found, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil || len(found) == 0 {
		if ctx.Err() != nil {
			return nil, &dialFailure{reasonTimeout, "timeout", "name lookup timed out"}
		}
		return nil, &dialFailure{reasonDNS, "dns_failed", "name not found"}
	}
	own := s.own.networks()
	for _, address := range found {
		if verdict := s.egressVerdict(address, port, own); verdict != "" {
			return nil, policy(verdict)
		}
	}
	dialer := s.dialer()
	dialer.Control = func(_, address string, _ syscall.RawConn) error {
		pair, err := netip.ParseAddrPort(address)
		if err != nil || s.egressVerdict(pair.Addr(), int(pair.Port()), own) != "" {
			return errEgress
		}
		return nil
	}
	var failure *dialFailure
	for _, address := range found[:min(len(found), addressesTried)] {
		connection, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(address, uint16(port)).String())
		if err == nil {
			return connection.(*net.TCPConn), nil
		}
		failure = explain(ctx, err)
	}
	return nil, failure
}

func explain(ctx context.Context, err error) *dialFailure {
	var late net.Error
	switch {
	case errors.Is(err, errEgress):
		return &dialFailure{reasonEgress, "connection_refused", "egress policy: private_address"}
	case ctx.Err() != nil || (errors.As(err, &late) && late.Timeout()):
		return &dialFailure{reasonTimeout, "timeout", "dial timed out"}
	case errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "refused"):
		return &dialFailure{reasonRefused, "connection_refused", "refused"}
	}
	return &dialFailure{reasonUnreachable, "unknown", "unreachable"}
}

// ---- frames of binary-v2 (docs/protocol, shared/wire/mux.py)

const (
	muxOpen    = 0x10
	muxOpened  = 0x11
	muxRefused = 0x12
	muxData    = 0x13
	muxWindow  = 0x14
	muxEOF     = 0x15
	muxReset   = 0x16
	muxPing    = 0x17
	muxPong    = 0x18
	muxGoaway  = 0x19
	muxResume  = 0x1a
	muxResumed = 0x1b
	muxBlocked = 0x1c
	muxClose   = 0x1d

	reasonRefused       = 1
	reasonDNS           = 2
	reasonTimeout       = 3
	reasonUnreachable   = 4
	reasonEgress        = 5
	reasonTargetReset   = 6
	reasonPathLost      = 17
	reasonFlowViolation = 18
	reasonTooMany       = 19
	reasonUnknownTunnel = 21

	tokenBytes     = 16
	headerBytes    = 5
	openBytes      = tokenBytes + 8 + 2 + 1
	hostMaxBytes   = 253
	detailMaxBytes = 128
)

// bodyBytes are the least and the most bytes of a body.
var bodyBytes = map[byte][2]int{
	muxOpen: {openBytes, openBytes + hostMaxBytes}, muxOpened: {8, 8}, muxRefused: {1, 1 + detailMaxBytes},
	muxData: {0, dataMaxBytes}, muxWindow: {16, 16}, muxEOF: {0, 0}, muxReset: {1, 1}, muxPing: {8, 8}, muxPong: {8, 8},
	muxGoaway: {8, 8}, muxResume: {tokenBytes + 16, tokenBytes + 16}, muxResumed: {16, 16}, muxBlocked: {8, 8},
	muxClose: {0, 0},
}

var (
	errMalformed = errors.New("malformed frame")
	errFlow      = errors.New("flow control was violated")
)

type token [tokenBytes]byte

// parseMux cuts a frame; kind is 0 for a type that nobody knows.
func parseMux(data []byte) (kind byte, tunnel uint32, body []byte, err error) {
	if len(data) < headerBytes {
		return 0, 0, nil, errMalformed
	}
	bounds, known := bodyBytes[data[0]]
	if !known {
		return 0, 0, nil, nil
	}
	if body = data[headerBytes:]; len(body) < bounds[0] || len(body) > bounds[1] {
		return 0, 0, nil, errMalformed
	}
	return data[0], binary.BigEndian.Uint32(data[1:]), body, nil
}

func muxHeader(kind byte, tunnel uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, tunnel)
}

func muxFrame(kind byte, tunnel uint32, numbers ...uint64) []byte {
	frame := muxHeader(kind, tunnel)
	for _, number := range numbers {
		frame = binary.BigEndian.AppendUint64(frame, number)
	}
	return frame
}

func muxReasonFrame(kind byte, tunnel uint32, reason byte, detail string) []byte {
	raw := detail[:min(len(detail), detailMaxBytes)]
	for !utf8.ValidString(raw) {
		raw = raw[:len(raw)-1]
	}
	return append(append(muxHeader(kind, tunnel), reason), raw...)
}

type openRequest struct {
	token token
	limit uint64
	port  int
	host  string
}

func parseOpen(body []byte) (openRequest, error) {
	size, host := int(body[openBytes-1]), body[openBytes:]
	given := openRequest{
		token: token(body[:tokenBytes]), limit: binary.BigEndian.Uint64(body[tokenBytes:]),
		port: int(binary.BigEndian.Uint16(body[tokenBytes+8:])), host: string(host),
	}
	if len(host) != size || size == 0 || size > hostMaxBytes || given.port == 0 || !utf8.Valid(host) {
		return openRequest{}, errMalformed
	}
	return given, nil
}

func twoNumbers(body []byte) (first, second uint64) {
	return binary.BigEndian.Uint64(body), binary.BigEndian.Uint64(body[8:])
}

// ---- stream: one end of a tunnel, without I/O and without a clock (docs/protocol/binary-v2-stream.json)

// sink is the connection that a stream feeds and is fed by; it is called with the stream's lock held.
type sink interface {
	deliver(data []byte)
	endOfInput()
	holdSource(held bool)
}

// budget is how much all windows of the device may grow by together.
type budget struct{ left atomic.Int64 }

func (b *budget) draw(size int64) bool {
	if b.left.Add(-size) < 0 {
		b.left.Add(size)
		return false
	}
	return true
}

type stream struct {
	mu     sync.Mutex
	sink   sink
	token  token
	budget *budget
	out    *outbox
	id     uint32
	window uint64
	drawn  uint64
	// sending: [acked, sent) is kept in unacked, then comes pending
	limit, acked, sent, blockedAt uint64
	blocked                       bool
	unacked, pending              [][]byte
	pendingBytes                  int
	held, eofWanted, eofSent      bool
	// receiving
	received, told, grownAt uint64
	limits                  []uint64
	stalled, eofReceived    bool
}

func newStream(to sink, name token, all *budget, window uint64) *stream {
	return &stream{sink: to, token: name, budget: all, window: window, told: window, limits: []uint64{window}}
}

// delivered: all that was written here, and the EOF after it, has been taken by the other end.
func (s *stream) delivered() bool { return s.eofSent && s.acked == s.sent }

func (s *stream) over() bool { return s.eofReceived && s.delivered() }

func (s *stream) attach(out *outbox, id uint32) { s.out, s.id = out, id }

// resume goes on over another path: what came after `received` is sent again, after what came here was acknowledged.
func (s *stream) resume(received, limit uint64) error {
	if err := s.acknowledge(received); err != nil {
		return err
	}
	if s.eofSent && s.acked < s.sent {
		s.eofSent = false
		s.sent--
	}
	s.pending = append(s.unacked, s.pending...)
	s.pendingBytes += int(s.sent - s.acked)
	s.unacked = nil
	s.sent = s.acked
	s.limit = max(s.limit, limit)
	s.blocked = false
	granted := s.received
	if !s.stalled && !s.eofReceived {
		granted += s.window
	}
	s.tell(max(s.told, granted))
	s.holdOrRelease()
	s.offer()
	return nil
}

func (s *stream) close() {
	s.out = nil
	s.budget.left.Add(int64(s.drawn))
	s.drawn = 0
	s.eofWanted = true
	s.pending, s.unacked = nil, nil
}

func (s *stream) write(data []byte) {
	if s.eofWanted {
		return
	}
	s.pending = keepPiece(s.pending, data)
	s.pendingBytes += len(data)
	s.holdOrRelease()
	s.offer()
}

// keepPiece keeps a piece; of small ones many are joined, and leave as one frame where they wait. What is joined is copied:
// pieces share their memory with others, and with what is being written.
func keepPiece(pieces [][]byte, piece []byte) [][]byte {
	last := len(pieces) - 1
	if len(piece) >= smallBytes || last+1 < apartMax || len(pieces[last]) >= joinedMaxBytes {
		return append(pieces, piece)
	}
	pieces[last] = append(slices.Clip(pieces[last]), piece...)
	return pieces
}

func (s *stream) writeEOF() {
	if !s.eofWanted {
		s.eofWanted = true
		s.offer()
	}
}

func (s *stream) drained() {
	s.stalled = false
	s.grant()
}

func (s *stream) onOpened(limit uint64) {
	s.limit = max(s.limit, limit)
	s.offer()
}

func (s *stream) onData(data []byte) error {
	size := uint64(len(data))
	if size == 0 || s.eofReceived || s.received+size > s.told {
		return errFlow
	}
	s.received += size
	s.sink.deliver(data)
	if !s.stalled {
		s.grant()
	}
	return nil
}

func (s *stream) onEOF() error {
	if s.eofReceived {
		return errFlow
	}
	s.eofReceived = true
	s.received++
	s.tell(max(s.told, s.received))
	s.sink.endOfInput()
	return nil
}

func (s *stream) onWindow(received, limit uint64) error {
	if err := s.acknowledge(received); err != nil {
		return err
	}
	if limit > s.limit {
		s.limit = limit
		if len(s.pending) > 0 {
			s.offer()
		}
	}
	s.holdOrRelease()
	return nil
}

// onBlocked doubles the window when the sender has filled one of the limits it was last told and the sink keeps up.
func (s *stream) onBlocked(limit uint64) {
	if s.stalled || s.eofReceived || s.window >= windowMaxBytes {
		return
	}
	if !slices.Contains(s.limits, limit) || s.received < limit || limit <= s.grownAt {
		return
	}
	if s.budget.draw(int64(s.window)) {
		s.grownAt = limit
		s.drawn += s.window
		s.window *= 2
		s.tell(s.received + s.window)
	}
}

// take gives the next DATA or EOF frame that credit allows.
func (s *stream) take(out *outbox, maxBytes int) (op int, head, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out != out {
		return 0, nil, nil
	}
	if len(s.pending) == 0 {
		if s.eofWanted && !s.eofSent {
			s.eofSent = true
			s.sent++
			return websocket.BinaryMessage, muxHeader(muxEOF, s.id), nil
		}
		return 0, nil, nil
	}
	bound := min(s.limit, s.acked+windowMaxBytes)
	if bound <= s.sent {
		if !s.blocked || s.blockedAt != s.limit {
			s.blocked, s.blockedAt = true, s.limit
			out.send(muxFrame(muxBlocked, s.id, s.limit))
		}
		return 0, nil, nil
	}
	chunk := s.pending[0]
	credit := min(bound-s.sent, uint64(maxBytes))
	if uint64(len(chunk)) > credit {
		s.pending[0] = chunk[credit:]
		chunk = chunk[:credit]
	} else {
		s.pending[0] = nil
		s.pending = s.pending[1:]
	}
	s.sent += uint64(len(chunk))
	s.pendingBytes -= len(chunk)
	s.unacked = keepPiece(s.unacked, chunk)
	s.holdOrRelease()
	return websocket.BinaryMessage, muxHeader(muxData, s.id), chunk
}

func (s *stream) offer() {
	if s.out != nil {
		s.out.offer(s)
	}
}

func (s *stream) holdOrRelease() {
	if full := s.pendingBytes > pendingHighBytes; full != s.held {
		s.held = full
		s.sink.holdSource(full)
	}
}

func (s *stream) acknowledge(received uint64) error {
	if received > s.sent {
		return errFlow
	}
	if received <= s.acked {
		return nil
	}
	gone := received - s.acked
	s.acked = received
	for gone > 0 && len(s.unacked) > 0 {
		if size := uint64(len(s.unacked[0])); size <= gone {
			gone -= size
			s.unacked[0] = nil
			s.unacked = s.unacked[1:]
		} else {
			s.unacked[0] = s.unacked[0][gone:]
			gone = 0
		}
	}
	return nil
}

// grant tells of new room when it is worth a frame.
func (s *stream) grant() {
	if limit := s.received + s.window; !s.eofReceived && limit-s.told >= s.window/2 && limit > s.told {
		s.tell(limit)
	}
}

// tell acknowledges and grants; what cannot be told now is told by resume.
func (s *stream) tell(limit uint64) {
	if s.out == nil {
		return
	}
	if limit > s.told {
		s.told = limit
		s.limits = append([]uint64{limit}, s.limits[:min(len(s.limits), 3)]...)
	}
	s.out.send(muxFrame(muxWindow, s.id, s.received, limit))
}

// ---- outbox: one socket's way out; control frames first, then a frame of each lane in turn, by one writer

type lane interface {
	// take gives the next frame for this outbox; op is 0 when there is none now.
	take(out *outbox, maxBytes int) (op int, head, payload []byte)
}

type controlFrame struct {
	op   int
	data []byte
}

type outbox struct {
	mu      sync.Mutex
	more    *sync.Cond
	control []controlFrame
	ready   []lane
	waiting map[lane]bool
	closed  bool
}

func newOutbox() *outbox {
	o := &outbox{waiting: map[lane]bool{}}
	o.more = sync.NewCond(&o.mu)
	return o
}

func (o *outbox) send(frame []byte) { o.put(controlFrame{websocket.BinaryMessage, frame}) }

// put queues a control frame; a relay that asks and asks but never reads is left instead.
func (o *outbox) put(frame controlFrame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.control) >= controlMaxFrames {
		o.closed = true
	}
	if !o.closed {
		o.control = append(o.control, frame)
	}
	o.more.Signal()
}

func (o *outbox) offer(l lane) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.waiting[l] && !o.closed {
		o.waiting[l] = true
		o.ready = append(o.ready, l)
		o.more.Signal()
	}
}

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.more.Broadcast()
}

// next gives the frame to send now; op is 0 when there is none and `wait` is false, or when the outbox is closed.
func (o *outbox) next(wait bool) (op int, head, payload []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed {
		switch {
		case len(o.control) > 0:
			frame := o.control[0]
			if o.control = o.control[1:]; len(o.control) == 0 {
				o.control = nil
			}
			return frame.op, frame.data, nil
		case len(o.ready) > 0:
			l := o.ready[0]
			if o.ready = o.ready[1:]; len(o.ready) == 0 {
				o.ready = nil
			}
			delete(o.waiting, l)
			o.mu.Unlock()
			op, head, payload = l.take(o, dataMaxBytes)
			if op != 0 {
				o.offer(l)
			}
			o.mu.Lock()
			if op != 0 {
				return op, head, payload
			}
		case !wait:
			return 0, nil, nil
		default:
			o.more.Wait()
		}
	}
	return 0, nil, nil
}

// ---- the bytes for a target: an ordered queue with one writer

// feed is what one target is still to be written. `mu` is that of its owner.
type feed struct {
	mu     *sync.Mutex
	more   *sync.Cond
	chunks net.Buffers
	bytes  int  // queued and being written
	eof    bool // then the direction ends
	closed bool // then the connection ends, when all is written
	dead   bool // nothing is written any more
}

func newFeed(mu *sync.Mutex) *feed { return &feed{mu: mu, more: sync.NewCond(mu)} }

func (f *feed) push(data []byte) {
	f.chunks = append(f.chunks, data)
	f.bytes += len(data)
	f.more.Broadcast()
}

// run writes until the feed ends; written is told, with the lock held, after each write.
func (f *feed) run(connection *net.TCPConn, allowed *allowance, written func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	ended := false
	for {
		for len(f.chunks) == 0 && !f.dead && !f.closed && (!f.eof || ended) {
			f.more.Wait()
		}
		switch {
		case f.dead:
			return nil
		case len(f.chunks) > 0:
			chunks, size := f.chunks, 0
			f.chunks = nil
			for _, chunk := range chunks {
				size += len(chunk)
			}
			f.mu.Unlock()
			_, err := chunks.WriteTo(connection)
			time.Sleep(allowed.spend(size))
			f.mu.Lock()
			f.bytes -= size
			f.more.Broadcast()
			if err != nil {
				return err
			}
			written()
		case f.closed:
			return nil
		default:
			ended = true
			f.mu.Unlock()
			err := connection.CloseWrite()
			f.mu.Lock()
			if err != nil {
				return err
			}
		}
	}
}

// readTarget reads until the end and hands each piece over as its taker's own; small pieces are copied out.
func readTarget(connection *net.TCPConn, allowed *allowance, taken func(data []byte)) error {
	var buffer []byte
	for {
		if buffer == nil {
			buffer = make([]byte, dataMaxBytes)
		}
		size, err := connection.Read(buffer)
		if size > 0 {
			data := buffer[:size]
			if size < dataMaxBytes/2 {
				data = bytes.Clone(data)
			} else {
				buffer = nil
			}
			taken(data)
			time.Sleep(allowed.spend(size))
		}
		if err != nil {
			return err
		}
	}
}

// ---- tunnels of v2

// table holds all tunnels of the device, whichever socket they are on.
type table struct {
	mu       sync.Mutex
	byToken  map[token]*tunnel
	sessions int
	budget   budget
}

func (t *table) find(name token) *tunnel {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byToken[name]
}

func (t *table) add(to *tunnel) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byToken)+t.sessions >= maxTunnels || t.byToken[to.token] != nil {
		return false
	}
	t.byToken[to.token] = to
	return true
}

func (t *table) drop(from *tunnel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byToken[from.token] == from {
		delete(t.byToken, from.token)
	}
}

// enter counts a session of v1, which lives on its socket.
func (t *table) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byToken)+t.sessions >= maxTunnels {
		return false
	}
	t.sessions++
	return true
}

func (t *table) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions--
}

func (t *table) all() []*tunnel {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := make([]*tunnel, 0, len(t.byToken))
	for _, one := range t.byToken {
		found = append(found, one)
	}
	return found
}

type tunnel struct {
	*stream
	d           *device
	socket      *socket // nil while the path is lost
	connection  *net.TCPConn
	feed        *feed
	cancel      context.CancelFunc
	heldSource  bool
	epoch       int
	expiry      *time.Timer // while the path is lost
	targetEnded bool
	targetGone  bool // nothing is read from it any more, or written to it
	ended       bool
	moved       atomic.Int64
}

func (d *device) newTunnel(name token, on *socket, id uint32) *tunnel {
	t := &tunnel{d: d, socket: on}
	t.stream = newStream(t, name, &d.table.budget, windowStartBytes)
	t.id = id
	t.feed = newFeed(&t.mu)
	t.touch()
	return t
}

func (t *tunnel) touch() { t.moved.Store(time.Now().UnixNano()) }

// deliver, endOfInput and holdSource are the sink of its stream.

func (t *tunnel) deliver(data []byte) {
	t.touch()
	if t.targetGone {
		return
	}
	t.feed.push(data)
	if t.feed.bytes > targetHighBytes {
		t.stalled = true
	}
}

func (t *tunnel) endOfInput() {
	t.feed.eof = true
	t.feed.more.Broadcast()
}

func (t *tunnel) holdSource(held bool) {
	t.heldSource = held
	t.feed.more.Broadcast()
}

func (t *tunnel) run(ctx context.Context, given openRequest) {
	connection, failure := t.d.s.dialTarget(ctx, given.host, given.port)
	t.mu.Lock()
	defer t.mu.Unlock()
	if failure != nil {
		t.say(muxReasonFrame(muxRefused, t.id, failure.reason, failure.detail))
		t.leave()
		return
	}
	if t.ended || t.socket == nil {
		connection.Close()
		t.leave()
		return
	}
	t.d.verbose("[TCP_OPEN_OK] %d", t.id)
	t.connection = connection
	t.say(muxFrame(muxOpened, t.id, t.told))
	t.attach(t.socket.out, t.id)
	t.onOpened(given.limit)
	go t.readSource()
	go t.writeTarget()
}

func (t *tunnel) readSource() {
	err := readTarget(t.connection, t.d.allowance, func(data []byte) {
		t.touch()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.write(data)
		for t.heldSource && !t.ended && !t.targetGone {
			t.feed.more.Wait()
		}
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.ended, t.targetGone:
	case errors.Is(err, io.EOF):
		t.targetEnded = true
		t.writeEOF()
	default:
		t.targetLost()
	}
}

func (t *tunnel) writeTarget() {
	err := t.feed.run(t.connection, t.d.allowance, func() {
		if t.stalled && t.feed.bytes < targetLowBytes && !t.ended && !t.targetGone {
			t.drained()
		}
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && !t.ended && !t.targetGone {
		t.targetLost()
	}
	t.connection.Close()
}

// targetLost lets nothing more in for a target that is gone.
func (t *tunnel) targetLost() {
	t.targetGone, t.stalled = true, true
	t.feed.chunks, t.feed.dead = nil, true
	t.feed.more.Broadcast()
	t.connection.Close()
	t.tellTargetIsGone()
}

// tellTargetIsGone tells the gateway: what the target had said, and that it had ended, comes first; where the path is lost,
// another one.
func (t *tunnel) tellTargetIsGone() {
	if t.socket != nil && (t.delivered() || !t.targetEnded) {
		t.abort(reasonTargetReset)
	}
}

// receive takes a frame of the gateway.
func (t *tunnel) receive(kind byte, body []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || (t.connection == nil && kind != muxReset && kind != muxClose && kind != muxData) {
		return
	}
	var err error
	switch kind {
	case muxData:
		err = t.onData(bytes.Clone(body))
	case muxWindow:
		err = t.onWindow(twoNumbers(body))
	case muxBlocked:
		t.onBlocked(binary.BigEndian.Uint64(body))
	case muxEOF:
		err = t.onEOF()
	case muxReset:
		if body[0] == reasonPathLost {
			t.pathLost()
		} else {
			t.abort(0)
		}
	case muxClose:
		t.finish()
	}
	t.settle(err)
}

// settle ends the tunnel after a violation, when both directions are done, or when a target that is gone was heard out.
func (t *tunnel) settle(err error) {
	switch {
	case t.ended:
	case err != nil:
		log.Printf("tunnel ended: %v", err)
		t.abort(reasonFlowViolation)
	case t.over():
		t.finish()
	case t.targetGone:
		t.tellTargetIsGone()
	}
}

func (t *tunnel) resumeOn(on *socket, id uint32, received, limit uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		on.out.send(muxReasonFrame(muxRefused, id, reasonUnknownTunnel, ""))
		on.forget(id, t)
		return
	}
	if t.socket != nil {
		t.socket.forget(t.id, t)
	}
	if t.expiry != nil {
		t.expiry.Stop()
	}
	t.socket = on
	t.epoch++
	t.attach(on.out, id)
	t.say(muxFrame(muxResumed, id, t.received, t.told))
	t.settle(t.resume(received, limit))
}

// pathLost lets the tunnel wait for a resumption, for a while.
func (t *tunnel) pathLost() {
	if t.ended {
		return
	}
	if t.socket != nil {
		t.socket.forget(t.id, t)
		t.socket = nil
	}
	t.out = nil
	t.epoch++
	if t.connection == nil {
		t.abort(0)
		return
	}
	epoch := t.epoch
	t.expiry = time.AfterFunc(t.d.s.times.resume, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.epoch == epoch && !t.ended {
			t.abort(0)
		}
	})
}

// abort ends the tunnel at once; with a reason the gateway is told.
func (t *tunnel) abort(reason byte) {
	if reason != 0 {
		t.say(muxReasonFrame(muxReset, t.id, reason, ""))
	}
	t.leave()
	t.feed.dead = true
	t.feed.more.Broadcast()
	if t.connection != nil {
		_ = t.connection.SetLinger(0)
		t.connection.Close()
	}
}

// finish ends the tunnel cleanly: what the target has not read yet still leaves.
func (t *tunnel) finish() {
	t.leave()
	t.feed.closed = true
	t.feed.more.Broadcast()
	if t.connection != nil {
		_ = t.connection.SetWriteDeadline(time.Now().Add(flushMax))
	}
}

func (t *tunnel) leave() {
	t.ended = true
	t.cancel()
	if t.socket != nil {
		t.socket.forget(t.id, t)
		t.socket = nil
	}
	t.close()
	t.d.table.drop(t)
	t.feed.more.Broadcast()
}

func (t *tunnel) say(frame []byte) {
	if t.socket != nil {
		t.socket.out.send(frame)
	}
}

// ---- sessions of v1

type session struct {
	mu         sync.Mutex
	on         *socket
	id         string
	prefix     []byte
	feed       *feed
	connection *net.TCPConn
	cancel     context.CancelFunc
	pending    [][]byte // for the relay
	waiting    int
	ended      bool // nothing of the relay counts any more
	telling    bool // tunnel_closed follows what is pending
	moved      atomic.Int64
}

func (n *session) take(_ *outbox, maxBytes int) (op int, head, payload []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.pending) > 0 {
		chunk := n.pending[0]
		if len(chunk) > maxBytes {
			n.pending[0] = chunk[maxBytes:]
			chunk = chunk[:maxBytes]
		} else {
			n.pending = n.pending[1:]
		}
		n.waiting -= len(chunk)
		n.feed.more.Broadcast()
		return websocket.BinaryMessage, n.prefix, chunk
	}
	if n.telling {
		n.telling = false
		return websocket.TextMessage, textFrame("tunnel_closed", map[string]any{"sessionId": n.id}), nil
	}
	return 0, nil, nil
}

func (n *session) run(ctx context.Context, host string, port int) {
	began := time.Now()
	connection, failure := n.on.d.s.dialTarget(ctx, host, port)
	n.mu.Lock()
	if failure != nil {
		told := n.ended
		n.end()
		n.mu.Unlock()
		if !told {
			n.on.openFailed(n.id, failure.word, failure.detail, time.Since(began))
		}
		return
	}
	if n.ended {
		n.mu.Unlock()
		connection.Close()
		return
	}
	n.connection = connection
	n.mu.Unlock()
	n.on.d.verbose("[TCP_OPEN_OK] %s", printable(n.id))
	n.on.text("tunnel_connected", map[string]any{"sessionId": n.id})
	go func() {
		if err := n.feed.run(connection, n.on.d.allowance, func() {}); err != nil {
			n.abort()
		}
		connection.Close()
	}()
	_ = readTarget(connection, n.on.d.allowance, func(data []byte) {
		n.moved.Store(time.Now().UnixNano())
		n.mu.Lock()
		defer n.mu.Unlock()
		n.pending = keepPiece(n.pending, data)
		n.waiting += len(data)
		n.on.out.offer(n)
		for n.waiting > pendingHighBytes && !n.ended {
			n.feed.more.Wait()
		}
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ended {
		n.telling = true
		n.end()
		n.feed.dead = true
		n.on.out.offer(n)
	}
	connection.Close()
}

// toTarget queues customer's bytes. A target that does not read holds the socket up, as v1 has no other way, but not for ever.
func (n *session) toTarget(data []byte) {
	n.moved.Store(time.Now().UnixNano())
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return
	}
	n.feed.push(bytes.Clone(data))
	if n.connection == nil && n.feed.bytes > sessionQueueBytes {
		n.endSession(true)
		return
	}
	if n.connection == nil || n.feed.bytes <= targetHighBytes {
		return
	}
	n.on.reading.Store(false)
	defer n.on.reading.Store(true)
	late := time.AfterFunc(blockedMax, n.abort)
	defer late.Stop()
	for n.feed.bytes > targetHighBytes && !n.ended {
		n.feed.more.Wait()
	}
}

// endSession is called with the lock held: by the relay's wish, at once or after what is queued has left.
func (n *session) endSession(now bool) {
	n.end()
	n.feed.closed = true
	n.feed.dead = n.feed.dead || now
	n.feed.more.Broadcast()
	if n.connection == nil {
		return
	}
	if now {
		_ = n.connection.SetLinger(0)
		n.connection.Close()
	} else {
		_ = n.connection.SetWriteDeadline(time.Now().Add(flushMax))
	}
}

func (n *session) abort() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ended {
		n.telling = true
		n.endSession(true)
		n.on.out.offer(n)
	}
}

// end gives the place back, once.
func (n *session) end() {
	if !n.ended {
		n.ended = true
		n.cancel()
		n.on.forgetSession(n)
		n.on.d.table.leave()
		n.feed.more.Broadcast()
	}
}

// ---- relay socket

type socket struct {
	d         *device
	who       *identity
	address   string
	ws        *websocket.Conn
	out       *outbox
	v2        bool
	connected atomic.Bool
	reading   atomic.Bool // false while a target of v1 holds the socket up
	heard     atomic.Int64
	leaving   bool // a GOAWAY came
	ctx       context.Context
	mu        sync.Mutex
	tunnels   map[uint32]*tunnel
	sessions  map[string]*session
	ending    sync.Once
	code      atomic.Int32
}

// run connects and serves until the socket ends; it answers with the close code. An error says that no relay was there.
func (d *device) runSocket(ctx context.Context, who *identity, address string, standing func(*socket)) (*socket, error) {
	dialer := websocket.Dialer{
		Subprotocols: []string{"token." + who.token}, HandshakeTimeout: connectTimeout, TLSClientConfig: d.trust,
		NetDialContext: d.s.dialer().DialContext, ReadBufferSize: dataMaxBytes, WriteBufferSize: dataMaxBytes + 1024,
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := &socket{
		d: d, who: who, address: address, out: newOutbox(), ctx: ctx, tunnels: map[uint32]*tunnel{}, sessions: map[string]*session{},
	}
	k.code.Store(closeLost)
	ws, response, err := dialer.DialContext(ctx, address, nil)
	if err != nil {
		if response != nil && response.StatusCode == http.StatusUnauthorized {
			k.code.Store(closeIdentityInvalid)
			return k, nil
		}
		return k, errors.New("relay not reached")
	}
	defer ws.Close()
	if ws.Subprotocol() != "token."+who.token {
		log.Print("relay did not select this device's token")
		return k, nil
	}
	k.ws = ws
	ws.SetReadLimit(messageMaxBytes)
	k.reading.Store(true)
	k.hear()
	stop := context.AfterFunc(ctx, func() { k.finish(closeNormal, "stopped by its owner") })
	defer stop()
	k.text("device_info", map[string]any{
		"country": d.s.country, "carrier": "", "currentIp": "auto", "protocol": d.s.protocol, "supportsRelayRedirect": d.s.relay == "",
		"sdkVersion": "go-" + version, "osVersion": runtime.GOOS,
	})
	standing(k)
	go k.writeLoop()
	go k.pulse()
	k.readLoop()
	k.out.close()
	cancel()
	k.leaveTunnels()
	return k, nil
}

func (k *socket) hear() { k.heard.Store(time.Now().UnixNano()) }

func (k *socket) writeLoop() {
	for {
		op, head, payload := k.out.next(true)
		if op == 0 {
			k.end(closeLost)
			return
		}
		_ = k.ws.SetWriteDeadline(time.Now().Add(k.d.s.times.dead))
		writer, err := k.ws.NextWriter(op)
		if err == nil {
			_, err = writer.Write(head)
			if err == nil && len(payload) > 0 {
				_, err = writer.Write(payload)
			}
			err = errors.Join(err, writer.Close())
		}
		if err != nil {
			k.end(closeLost)
			return
		}
	}
}

func (k *socket) readLoop() {
	buffer := make([]byte, headerBytes+dataMaxBytes+1)
	for {
		op, reader, err := k.ws.NextReader()
		var message []byte
		if err == nil {
			message, buffer, err = readMessage(reader, buffer)
		}
		if err != nil {
			k.readFailed(err)
			return
		}
		k.hear()
		if op == websocket.TextMessage {
			err = k.onText(message)
		} else if k.v2 {
			err = k.onFrame(message)
		} else {
			err = k.onBinary(message)
		}
		if err != nil {
			k.finish(closeProtocol, err.Error())
			return
		}
	}
}

// readMessage reads a whole message into the buffer, which grows when it must; the reader bounds it.
func readMessage(reader io.Reader, buffer []byte) (message, grown []byte, err error) {
	size := 0
	for {
		if size == len(buffer) {
			buffer = append(buffer, make([]byte, len(buffer))...)
		}
		count, err := reader.Read(buffer[size:])
		size += count
		if errors.Is(err, io.EOF) {
			return buffer[:size], buffer, nil
		}
		if err != nil {
			return nil, buffer, err
		}
	}
}

func (k *socket) readFailed(err error) {
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		k.end(closed.Code)
		return
	}
	k.goodbye()
	k.end(closeLost)
}

// finish closes with a code, and leaves the relay a moment to read it.
func (k *socket) finish(code int, reason string) {
	message := websocket.FormatCloseMessage(code, reason)
	_ = k.ws.WriteControl(websocket.CloseMessage, message, time.Now().Add(goodbyeMax))
	k.code.CompareAndSwap(closeLost, int32(code))
	if code == closeProtocol {
		k.goodbye()
	} else {
		time.Sleep(goodbyeMax / 10)
	}
	k.end(code)
}

// goodbye reads what is still on its way, so that closing does not take back the close frame.
func (k *socket) goodbye() {
	raw := k.ws.NetConn()
	if half, ok := raw.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
	_ = raw.SetReadDeadline(time.Now().Add(goodbyeMax))
	_, _ = io.CopyN(io.Discard, raw, messageMaxBytes)
}

func (k *socket) end(code int) {
	k.ending.Do(func() {
		k.code.CompareAndSwap(closeLost, int32(code))
		k.out.close()
		k.ws.NetConn().Close()
	})
}

// pulse sends heartbeats and notices a dead path. A tick that comes late by the wall clock means that the device slept:
// the path then has `wake` to prove itself.
func (k *socket) pulse() {
	waits := k.d.s.times
	every := min(waits.tick, waits.heartbeat)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	wall := func() time.Time { return time.Now().Round(0) }
	last, beat := wall(), time.Now()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-ticker.C:
		}
		streams := k.count() > 0
		deadAfter := waits.dead
		if streams && k.v2 {
			deadAfter = waits.streamsDead
		}
		slept := wall().Sub(last)-every > waits.wake
		last = wall()
		if slept {
			k.heard.Store(time.Now().Add(-max(0, deadAfter-waits.wake)).UnixNano())
		}
		silent := time.Duration(time.Now().UnixNano() - k.heard.Load())
		if silent > deadAfter && k.reading.Load() {
			log.Print("relay is silent: dialling again")
			k.end(closeLost)
			return
		}
		if streams && k.v2 && silent >= waits.tick {
			k.out.send(append(muxHeader(muxPing, 0), make([]byte, 8)...))
		}
		if k.connected.Load() && (slept || time.Since(beat) >= waits.heartbeat-every/2) {
			beat = time.Now()
			k.text("heartbeat", map[string]any{})
		}
		k.reap(time.Now().Add(-waits.idle).UnixNano())
	}
}

func (k *socket) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.tunnels)
}

// reap ends tunnels on which nothing moved since then.
func (k *socket) reap(oldest int64) {
	k.mu.Lock()
	var idleTunnels []*tunnel
	var idleSessions []*session
	for _, t := range k.tunnels {
		if t.moved.Load() < oldest {
			idleTunnels = append(idleTunnels, t)
		}
	}
	for _, n := range k.sessions {
		if n.moved.Load() < oldest {
			idleSessions = append(idleSessions, n)
		}
	}
	k.mu.Unlock()
	for _, t := range idleTunnels {
		t.mu.Lock()
		if !t.ended {
			t.abort(reasonTimeout)
		}
		t.mu.Unlock()
	}
	for _, n := range idleSessions {
		n.abort()
	}
}

func (k *socket) leaveTunnels() {
	k.mu.Lock()
	tunnels, sessions := k.tunnels, k.sessions
	k.tunnels, k.sessions = map[uint32]*tunnel{}, map[string]*session{}
	k.mu.Unlock()
	for _, t := range tunnels {
		t.mu.Lock()
		if t.socket == k {
			t.pathLost()
		}
		t.mu.Unlock()
	}
	for _, n := range sessions {
		n.mu.Lock()
		n.endSession(true)
		n.mu.Unlock()
	}
}

func (k *socket) forget(id uint32, t *tunnel) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tunnels[id] == t {
		delete(k.tunnels, id)
	}
}

func (k *socket) forgetSession(n *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sessions[n.id] == n {
		delete(k.sessions, n.id)
	}
}

// text frames

func textFrame(kind string, payload map[string]any) []byte {
	raw, err := json.Marshal(map[string]any{"type": kind, "payload": payload})
	if err != nil {
		panic(err)
	}
	return raw
}

func (k *socket) text(kind string, payload map[string]any) {
	k.out.put(controlFrame{websocket.TextMessage, textFrame(kind, payload)})
}

type payload map[string]any

func (p payload) text(name string) string { value, _ := p[name].(string); return value }

func (p payload) integer(name string) int {
	value, ok := p[name].(float64)
	if !ok || value != float64(int(value)) {
		return 0
	}
	return int(value)
}

// parseText reads a text frame; a payload that is no object counts as empty.
func parseText(raw []byte) (kind string, given payload, err error) {
	if len(raw) > textMaxBytes || bytes.Count(raw, []byte("["))+bytes.Count(raw, []byte("{")) > textMaxBrackets {
		return "", nil, errMalformed
	}
	var message struct {
		Type    *string         `json:"type"`
		Payload json.RawMessage `json:"payload"`
	}
	if !utf8.Valid(raw) || json.Unmarshal(raw, &message) != nil || message.Type == nil {
		return "", nil, errMalformed
	}
	_ = json.Unmarshal(message.Payload, &given)
	return *message.Type, given, nil
}

func (k *socket) onText(raw []byte) error {
	kind, given, err := parseText(raw)
	if err != nil {
		return err
	}
	switch kind {
	case "connected":
		k.d.s.own.told(given.text("ip"))
		k.v2 = given.text("protocol") == protocolV2 && k.d.s.protocol == protocolV2
		k.connected.Store(true)
		log.Printf("[CONNECTED] device=%s", printable(given.text("deviceId")))
	case "heartbeat_ack":
		k.d.verbose("[ACK]")
	case "error":
		log.Printf("relay says: %s", printable(given.text("message")))
	case "relay_redirect":
		if k.d.mayFollow(k.who, k.address, given.text("relay")) {
			k.finish(closeRedirected, "redirect followed")
		}
	case "rotate_ip_request": // this peer shares a connection and does not command it
		k.text("rotation_complete", map[string]any{
			"requestId": given.text("requestId"), "success": false, "error": "not_supported",
		})
	case "tunnel_connect":
		return k.openSession(given.text("sessionId"), given.text("host"), given.integer("port"))
	case "tunnel_data":
		if n := k.session(given.text("sessionId")); n != nil {
			data, err := base64.StdEncoding.DecodeString(given.text("data"))
			if err != nil {
				return errMalformed
			}
			n.toTarget(data)
		}
	case "tunnel_close":
		k.closeSession(given.text("sessionId"))
	}
	return nil
}

func (k *socket) session(id string) *session {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sessions[id]
}

func (k *socket) closeSession(id string) {
	if n := k.session(id); n != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.endSession(false)
	}
}

func (k *socket) openSession(id, host string, port int) error {
	if len(id) > 255 {
		return errMalformed
	}
	if id == "" || k.session(id) != nil {
		return nil
	}
	if !k.d.table.enter() {
		k.openFailed(id, "unknown", "too many tunnels", 0)
		return nil
	}
	k.d.verbose("[TUNNEL_CONNECT] %s:%d", printable(host), port)
	n := &session{on: k, id: id, prefix: append([]byte{1, byte(len(id))}, id...)}
	n.feed = newFeed(&n.mu)
	n.moved.Store(time.Now().UnixNano())
	ctx, cancel := context.WithCancel(k.ctx)
	n.cancel = cancel
	k.mu.Lock()
	k.sessions[id] = n
	k.mu.Unlock()
	go n.run(ctx, host, port)
	return nil
}

func (k *socket) openFailed(id, word, detail string, took time.Duration) {
	k.text("tunnel_open_failed", map[string]any{
		"sessionId": id, "reason": word, "detail": detail, "durationMs": took.Milliseconds(),
	})
}

// onBinary takes a frame of v1: type, length of the session id, session id, payload.
func (k *socket) onBinary(raw []byte) error {
	if len(raw) < 3 || raw[1] == 0 || len(raw) < 2+int(raw[1]) || (raw[0] != 1 && raw[0] != 3) {
		return errMalformed
	}
	end := 2 + int(raw[1])
	id := string(raw[2:end])
	if !utf8.ValidString(id) {
		return errMalformed
	}
	if raw[0] == 3 {
		k.closeSession(id)
	} else if n := k.session(id); n != nil {
		n.toTarget(raw[end:])
	}
	return nil
}

// onFrame takes a frame of v2.
func (k *socket) onFrame(raw []byte) error {
	kind, id, body, err := parseMux(raw)
	if err != nil || kind == 0 {
		return err
	}
	k.mu.Lock()
	t := k.tunnels[id]
	k.mu.Unlock()
	switch {
	case t != nil && (kind == muxOpen || kind == muxResume):
		return errors.New("tunnel id is in use")
	case t != nil:
		t.receive(kind, body)
	case kind == muxOpen:
		return k.open(id, body)
	case kind == muxResume:
		k.resume(id, body)
	case kind == muxPing:
		k.out.send(append(muxHeader(muxPong, 0), body...))
	case kind == muxGoaway && !k.leaving: // the first one counts
		k.leaving = true
		wait := time.Duration(binary.BigEndian.Uint32(body)) * time.Millisecond
		time.AfterFunc(wait, func() {
			if k.ctx.Err() == nil {
				k.d.moveOn(k.who, k.address)
				k.finish(closeRedirected, "relay goes away")
			}
		})
	}
	return nil
}

func (k *socket) open(id uint32, body []byte) error {
	given, err := parseOpen(body)
	if err != nil {
		return err
	}
	k.d.verbose("[TUNNEL_CONNECT] %s:%d", printable(given.host), given.port)
	t := k.d.newTunnel(given.token, k, id)
	ctx, cancel := context.WithCancel(k.d.ctx)
	t.cancel = cancel
	if !k.d.table.add(t) {
		cancel()
		k.out.send(muxReasonFrame(muxRefused, id, reasonTooMany, ""))
		return nil
	}
	k.mu.Lock()
	k.tunnels[id] = t
	k.mu.Unlock()
	go t.run(ctx, given)
	return nil
}

func (k *socket) resume(id uint32, body []byte) {
	t := k.d.table.find(token(body[:tokenBytes]))
	if t == nil {
		k.out.send(muxReasonFrame(muxRefused, id, reasonUnknownTunnel, ""))
		return
	}
	k.mu.Lock()
	k.tunnels[id] = t
	k.mu.Unlock()
	received, limit := twoNumbers(body[tokenBytes:])
	t.resumeOn(k, id, received, limit)
}

// ---- device

type device struct {
	s         *settings
	keeper    *keeper
	trust     *tls.Config
	allowance *allowance
	table     table
	ctx       context.Context

	mu         sync.Mutex
	relay      string // where all sockets go, when not where the identity says
	redirected time.Time
}

func (d *device) verbose(format string, given ...any) {
	if d.s.verbose {
		log.Printf(format, given...)
	}
}

// run shares until the context ends, while the owner's schedule and charger let.
func (d *device) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if !d.s.allowed() {
			log.Print("[PAUSED] outside the owner's hours or off the charger")
			wait(ctx, func() bool { return d.s.allowed() })
			continue
		}
		serving, cancel := context.WithCancelCause(ctx)
		d.ctx = serving
		go func() {
			wait(serving, func() bool { return !d.s.allowed() })
			cancel(nil)
		}()
		var lines sync.WaitGroup
		for range d.s.connections {
			lines.Add(1)
			go func() {
				defer lines.Done()
				if err := d.line(serving); err != nil {
					cancel(err)
				}
			}()
		}
		<-serving.Done()
		for _, t := range d.table.all() {
			t.mu.Lock()
			if !t.ended {
				t.abort(0)
			}
			t.mu.Unlock()
		}
		lines.Wait()
		var no refused
		if err := context.Cause(serving); errors.As(err, &no) {
			return err
		}
	}
	return nil
}

// wait until a condition holds or the context ends.
func wait(ctx context.Context, condition func() bool) {
	for ctx.Err() == nil && !condition() {
		pause(ctx, allowedCheck)
	}
}

func pause(ctx context.Context, how time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(how):
	}
}

// line is one of the parallel sockets, until the context ends; an error is the API's last word. It goes to another relay at
// once, but in a row to no more than there are: who is sent round waits like others.
func (d *device) line(ctx context.Context) error {
	who, err := d.identity(ctx, nil)
	hurried, failures, hops := false, 0, 0
	for err == nil && ctx.Err() == nil {
		address, began := d.currentRelay(who), time.Now()
		stands := false
		k, gone := d.runSocket(ctx, who, address, func(*socket) { stands = true })
		if gone != nil {
			log.Printf("%v", gone)
			d.moveOn(who, address)
		}
		if failures++; stands && k.connected.Load() {
			failures = 0
		}
		if time.Since(began) > d.s.times.redialMax {
			hops = 0
		}
		if hops++; d.currentRelay(who) != address && max(hops, failures) <= len(who.relays) {
			continue
		}
		hops = 0
		if code := k.code.Load(); code == closeIdentityInvalid || code == closeIdentityRevoked {
			who, err = d.identity(ctx, who)
		}
		hurried = len(d.table.all()) > 0 && !hurried
		pause(ctx, d.redialIn(hurried, failures))
	}
	return err
}

// redialIn is hurried while tunnels wait to be resumed, but never twice in a row; it has full jitter, and grows while no
// relay answers.
func (d *device) redialIn(hurried bool, failures int) time.Duration {
	low, high := d.s.times.redialMin, d.s.times.redialMax
	if hurried {
		low, high = hurryMin, hurryMax
	}
	if failures > 1 {
		high = max(high, min(backoffMax, d.s.times.redialMax<<min(failures-1, 10)))
	}
	return low + time.Duration(mathrand.Int64N(int64(max(high-low, 0))+1))
}

func (d *device) currentRelay(who *identity) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.relay != "" {
		return d.relay
	}
	return who.relay
}

// mayFollow allows other relays that the API named, once a while; the other sockets follow the first one. A pinned relay is
// kept.
func (d *device) mayFollow(who *identity, from, target string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if target == "" || target == from || d.s.relay != "" {
		return false
	}
	if target == d.relay {
		return true
	}
	recent := !d.redirected.IsZero() && time.Since(d.redirected) < d.s.times.redirect
	if recent || !slices.Contains(who.relays, target) {
		return false
	}
	d.redirected, d.relay = time.Now(), target
	log.Printf("moving to relay %s", printable(target))
	return true
}

// moveOn leaves a relay that goes away or is not reached for the next one that the API named.
func (d *device) moveOn(who *identity, from string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	current := d.relay
	if current == "" {
		current = who.relay
	}
	if d.s.relay != "" || current != from || len(who.relays) < 2 {
		return
	}
	d.relay = who.relays[(slices.Index(who.relays, from)+1)%len(who.relays)]
	d.redirected = time.Now()
	log.Printf("moving on to relay %s", printable(d.relay))
}

// identity waits for the API however long it takes; a refusal that will not change is an error.
func (d *device) identity(ctx context.Context, stale *identity) (*identity, error) {
	for delay := time.Second; ; delay = min(2*delay, backoffMax) {
		who, err := d.keeper.get(ctx, stale)
		var no refused
		if err == nil || ctx.Err() != nil {
			return who, nil
		}
		if errors.As(err, &no) && !no.passes() {
			return nil, err
		}
		log.Printf("API: %v", err)
		pause(ctx, time.Duration(mathrand.Int64N(2*int64(delay)))) // full jitter
	}
}

// ---- main

func main() { os.Exit(start()) }

func start() int {
	s, err := readSettings(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "psx-peer: %v\n", err)
		return 2
	}
	if s.dryRun {
		return dryRun(s)
	}
	trust, err := s.trust()
	if err != nil {
		fmt.Fprintf(os.Stderr, "psx-peer: %v\n", err)
		return 2
	}
	if s.withdraw {
		return withdraw(newKeeper(s, trust))
	}
	if !s.randomName {
		release, err := holdState(s.state)
		if err != nil {
			fmt.Fprintf(os.Stderr, "psx-peer: %v\n", err)
			return 1
		}
		defer release()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &device{s: s, keeper: newKeeper(s, trust), trust: trust, allowance: newAllowance(s.limitMbit)}
	d.table.byToken = map[token]*tunnel{}
	d.table.budget.left.Store(windowsMaxBytes)
	err = d.run(ctx)
	var no refused
	if errors.As(err, &no) && no.withdrawn() {
		fmt.Fprintf(os.Stderr, "psx-peer: %s\n", withdrawnText)
		return 2
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "psx-peer: the API refused this device: %v\n", err)
		return 1
	}
	return 0
}

func withdraw(k *keeper) int {
	err := k.withdraw(context.Background())
	switch {
	case err == nil:
		fmt.Printf("%s: withdrawn, nothing of it is shared any more\n", k.s.name)
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(os.Stderr, "psx-peer: %v\n", err)
		return 2
	}
	fmt.Fprintf(os.Stderr, "psx-peer: not withdrawn: %v\n", err)
	return 1
}

// dryRun shows what would be done; no secret.
func dryRun(s *settings) int {
	plan := map[string]any{
		"name": s.name, "api": s.api, "connections": s.connections, "protocol": s.protocol, "state": s.state,
		"relay": s.relay, "limitMbit": s.limitMbit, "termsAccepted": s.consent.TermsVersion,
	}
	raw, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		panic(err)
	}
	fmt.Println(termsText + string(raw))
	return 0
}
