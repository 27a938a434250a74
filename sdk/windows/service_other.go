//go:build !windows

package main

import "errors"

func act([]string, string) error { return errors.New("this is for Windows") }
